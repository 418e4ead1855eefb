#!/usr/bin/env bash
# Wheel and source, and whether they are whole: each is installed into an empty environment outside the checkout.
#
#   benchmarks/dist.sh          builds into dist/, installs, runs quickstart from the wheel, whose model is fetched anew
#   benchmarks/dist.sh quick    without that run; QUICKSTART="data.max_examples=128" makes it shorter
#
# torch comes as constraints.txt has it; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu takes the CPU's build.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${CHECK_PYTHON:-$root/.venv/bin/python}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
version=$("$python" -c "import pathlib, re; print(re.search(r'version = \"(.+)\"', pathlib.Path('$root/pyproject.toml').read_text())[1])")

rm -rf "$root/dist"
"$python" -m venv "$place/build"
"$place/build/bin/pip" install --quiet build
"$place/build/bin/python" -m build --outdir "$root/dist" "$root" >"$place/build.log" 2>&1 || { tail -20 "$place/build.log" >&2; exit 1; }
wheel=$root/dist/danlu-$version-py3-none-any.whl
source=$root/dist/danlu-$version.tar.gz

# The wheel that is made of the source is the wheel: what one lacks, so does the other.
"$place/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$place/again" "$source"
"$python" "$root/benchmarks/dist_check.py" "$wheel" "$source" "$place/again/$(basename "$wheel")"

"$python" -m venv "$place/env"
"$place/env/bin/pip" install --quiet -c "$root/constraints.txt" torch
"$place/env/bin/pip" install --quiet -c "$root/constraints.txt" "$wheel[recall]"
cd "$place"
unset PYTHONPATH
[ "$("$place/env/bin/danlu" --version)" = "$version" ]
"$place/env/bin/python" -c "import danlu, pathlib; assert pathlib.Path('$place') in pathlib.Path(danlu.__file__).resolve().parents"
"$place/env/bin/danlu" run recall-demo steps.people.source_options.count=20000 steps.people.labels.source_options.count=20000 \
    steps.articles.events.source_options.readers=2000
"$place/env/bin/danlu" recall query runs/recall-demo/people/collection "sex = 'F' and age > 25" --count
if [ "${1:-}" != quick ]; then
    # shellcheck disable=SC2086  # several words
    DANLU_CACHE=$place/cache "$place/env/bin/danlu" run quickstart ${QUICKSTART:-}
    "$place/env/bin/danlu" generate runs/quickstart/merged "Describe this Python function in one line. def close(self)" --max_new_tokens 24
fi
echo "dist: $(basename "$wheel") and $(basename "$source") are whole"
