# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with the pinned requirements, once per requirements file.
# Usage: source launch/environment.sh requirements.txt [more.txt …]

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed, $python is $("$python" --version). Set PYTHON to another one." >&2
  exit 1
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear .venv # missing, or left half-made
fi
for file in "$@"; do
  stamp=".venv/installed-$(echo "$file" | tr '/' '-')"
  if ! cmp -s "$file" "$stamp"; then
    echo "installing $file into .venv" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
    cp "$file" "$stamp"
  fi
done
