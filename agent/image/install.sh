#!/bin/sh
# The native stage of all Dockerfiles: unpacks wheels for another machine, so that nothing runs under emulation.
#   install.sh dependencies MACHINE EXTRAS FOLDER   what pyproject.toml asks for, as wheels for MACHINE (uname -m)
#   install.sh project FOLDER                       edgeserve itself
# FOLDER goes on PYTHONPATH of the same version of Python as this one.
set -eu

# Secrets of the build, where they are given: an authority that the network needs, and a pip.conf that names an index.
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -s /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1

backend=/build-backend # not among what ships, and, unlike an isolated build's, kept with the layer

dependencies() {
  machine=$1 extras=$2 folder=$3
  python3 -m pip install --quiet --target "$backend" 'hatchling>=1.27'
  # A stand-in for the project has its requirements without its code: a change of the code asks for nothing new.
  mkdir -p /stand-in/edgeserve
  cp pyproject.toml /stand-in
  touch /stand-in/README.md /stand-in/LICENSE /stand-in/edgeserve/__init__.py
  PYTHONPATH=$backend python3 -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /stand-in /stand-in
  # pip takes these tags literally: all that glibc 2.35 can load, of Ubuntu 22.04 (JetPack 6); Debian 12 has 2.36.
  tags="--platform manylinux2014_$machine"
  for minor in $(seq 17 35); do tags="--platform manylinux_2_${minor}_$machine $tags"; done
  python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  # shellcheck disable=SC2086 - several options
  python3 -m pip install --quiet --no-compile --target "$folder" --only-binary=:all: \
    --implementation cp --python-version "$python" $tags "$(echo /stand-in/*.whl)[$extras]"
  rm -rf /stand-in "$folder"/edgeserve* "$folder/bin"
  trim "$folder"
}

# What only compiles, converts or tests: sources and headers of extensions, and the tools beside the runtime.
trim() {
  find "$1" -depth -type d \( -name tests -o -name __pycache__ -o -name include \) -exec rm -rf {} +
  find "$1" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.a' \) -delete
  rm -rf "$1"/numpy/f2py "$1"/numpy/distutils "$1"/onnxruntime/transformers "$1"/onnxruntime/tools \
    "$1"/onnxruntime/quantization "$1"/onnxruntime/datasets
}

project() {
  PYTHONPATH=$backend python3 -m pip install --quiet --no-build-isolation --no-deps --no-compile --target "$1" .
  rm -rf "$1/bin"
  cp -r agent/image/bin "$1/bin"
}

"$@"
