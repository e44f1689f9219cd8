# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with the pinned requirements, once per requirements file.
# Usage: source launch/environment.sh requirements.txt [more.txt …]

if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
for file in "$@"; do
  stamp=".venv/installed-$(echo "$file" | tr '/' '-')"
  if ! cmp -s "$file" "$stamp"; then
    echo "installing $file into .venv" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
    cp "$file" "$stamp"
  fi
done
