#!/bin/sh
# Prints a Python that the study supports (3.11 to 3.14), or says what is missing.
for candidate in "${PYTHON:-python3}" python3.12 python3.13 python3.11 python3.14; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
done
echo "no Python 3.11 to 3.14 with the modules venv and ensurepip was found: install one, or name it with PYTHON=/path/to/python" >&2
exit 1
