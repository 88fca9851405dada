#!/bin/sh
# Makes .venv with the Python packages that the tests compare ft with (tests/peers/requirements.txt).
# Does nothing when all of it is there. torch comes from third_party/libtorch, by a .pth file; llama.cpp's converter goes to
# third_party/llama.cpp.
set -eu
cd "$(dirname "$0")/.."

export PIP_ROOT_USER_ACTION=ignore
requirements=tests/peers/requirements.txt
stamp=.venv/complete
python3 scripts/llama_cpp.py
# A GPU that came later brings CUDA libraries of its own, and with them other stand-ins.
wanted() { cat "$requirements" third_party/libtorch/.complete; }
wanted | cmp -s - "$stamp" && exit 0

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    rm -rf .venv
    # Debian splits the venv module off into python3-venv; virtualenv brings its own pip instead.
    if ! python3 -m venv .venv > /dev/null 2>&1; then
        rm -rf .venv third_party/virtualenv
        echo "python3 has no venv module: making .venv with virtualenv" >&2
        python3 -m pip install --quiet --disable-pip-version-check --target third_party/virtualenv virtualenv==21.15.8
        PYTHONPATH=third_party/virtualenv python3 -m virtualenv --quiet .venv
    fi
fi

echo "installing the peers into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$requirements"

packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf .venv/cuda "$packages/ft_libtorch.pth"
.venv/bin/python scripts/cuda_stand_ins.py "$PWD/third_party/libtorch" "$PWD/.venv/cuda" > "$packages/ft_libtorch.py"
printf '%s\nimport ft_libtorch\n' "$PWD/third_party/libtorch" > "$packages/ft_libtorch.pth"
.venv/bin/python -c 'import peft, torch, transformers'
wanted > "$stamp"
