#!/bin/sh
# Stands for a Tesseract that fails at every page.
case "$1" in
    --version) echo "tesseract 5.3.0" ;;
    --list-langs) printf 'List of available languages (1):\neng\n' ;;
    *) echo "Page 0 : 0.pgm" >&2; echo "out of memory" >&2; exit 3 ;;
esac
