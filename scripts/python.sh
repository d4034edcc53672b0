#!/bin/sh
# Prints a Python 3.11 to 3.13 that can make virtual environments, or says what is missing and exits 1.
# PYTHON=… in the environment is tried alone.
fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
found=
for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    command -v "$python" >/dev/null 2>&1 || continue
    "$python" -c "$fits" >/dev/null 2>&1 || continue
    found=$python
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        "$python" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done
if [ -n "$found" ]; then
    version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$found cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install python$version-venv" >&2
else
    echo "Python 3.11, 3.12 or 3.13 is needed and was not found${PYTHON:+ as $PYTHON}." >&2
    echo "On Debian and Ubuntu: sudo apt-get install python3 python3-venv; elsewhere set PYTHON=/path/to/python" >&2
fi
exit 1
