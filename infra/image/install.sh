#!/bin/sh
# Build steps of the image, in two parts so that the layer of torch stays while only mixopt changes. Works on the `python` of PATH.
#   install.sh torch cpu|gpu    torch at its pinned version: a CPU build, or the build with CUDA
#   install.sh mixopt           mixopt with what a cluster node and a tracking server need
# Packages come from where pip is configured to look (pip.conf: your mirror, the index of CPU builds), at the versions of constraints.txt only.
# Used by Containerfile, by ray-launcher.yaml and by tests/infra, which runs it in a clean environment.
set -eu
cd "$(dirname "$0")/../.."
# Older pip hands the first to the build of mixopt itself too, newer pip the second.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
torch="$(grep '^torch==' constraints.txt)"

case "${1:-} ${2:-}" in
"torch cpu")
    # "+cpu" names the build, so that without an index of CPU builds pip fails here instead of fetching gigabytes of CUDA.
    python -m pip install --constraint constraints.txt "$torch+cpu"
    ;;
"torch gpu")
    python -m pip install --constraint constraints.txt "$torch"
    python -c 'import sys, torch; sys.exit(0 if torch.version.cuda else f"torch {torch.__version__} has no CUDA: take the index of CPU builds out of pip.conf")'
    ;;
"mixopt ")
    python -m pip install --constraint constraints.txt ".[cluster]"
    python -m pip check
    ;;
*)
    echo "usage: $0 torch cpu|gpu, then $0 mixopt" >&2
    exit 2
    ;;
esac
