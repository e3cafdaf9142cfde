#!/usr/bin/env bash
# The action's only step, which runs the same way by hand, from the folder of the port:
#   PROGRAM="./port" bash path/to/minidora/.github/actions/dora-conformance/conformance.sh
# Exit code: that of `minidora kit run`, 0 where the port conforms.
set -euo pipefail
minidora=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=${PYTHON:-python3} reports=${REPORTS:-dora-conformance}

if [ -n "${PROGRAM:-}" ]; then port=(--program "$PROGRAM")
elif [ -n "${IMPL:-}" ]; then port=(--impl "$IMPL")
else echo "expected the input program or impl, got neither" >&2; exit 2; fi
read -r -a options <<< "${OPTIONS:-}"
"$python" -c "import numpy, safetensors, junitparser" 2>/dev/null ||
  "$python" -m pip install --quiet numpy safetensors junitparser
mkdir -p "$reports"

code=0
PYTHONPATH="$minidora${PYTHONPATH:+:$PYTHONPATH}" "$python" -m minidora kit run "${port[@]}" \
  --junit "$reports/junit.xml" --json "$reports/report.json" --markdown "$reports/report.md" \
  ${options[@]+"${options[@]}"} || code=$?
if [ -f "$reports/report.md" ]; then cat "$reports/report.md" >> "${GITHUB_STEP_SUMMARY:-/dev/null}"; fi
exit "$code"
