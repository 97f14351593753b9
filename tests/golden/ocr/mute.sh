#!/bin/sh
# Stands for a Tesseract that ends well but has read one page of all.
case "$1" in
    --version) echo "tesseract 5.3.0" ;;
    --list-langs) printf 'List of available languages (1):\neng\n' ;;
    *) printf 'level\tpage_num\n1\t1\n' ;;
esac
