#!/bin/sh
# Stands for a Tesseract that knows one threshold for the whole picture only.
echo "tesseract 4.1.1"
