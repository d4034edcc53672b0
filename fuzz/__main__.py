"""python -m fuzz TARGET [options of libFuzzer]: fuzz one target; without one, all of them in turn.

FUZZ_SECONDS bounds each (20). What is found, and the corpus that grows, lie under .fuzz/.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(".fuzz")
LONGEST = {"message": 8_192, "stream": 16_384}


def one(name: str, options: list[str]) -> None:
    """Never returns: libFuzzer ends the process, with a code that is not 0 after a finding."""
    import atheris

    with atheris.instrument_imports(include=["sip"]):
        from fuzz.targets import TARGETS, seeds

    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed{number:03}").write_bytes(seed)
    limits = [f"-max_len={LONGEST.get(name, 2_048)}", "-timeout=5", "-rss_limit_mb=2048"]
    limits += [
        f"-max_total_time={os.environ.get('FUZZ_SECONDS', '20')}",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    limits += [f"-artifact_prefix={FOLDER}/{name}-", f"-dict={Path(__file__).parent / 'sip.dict'}"]

    def kept(data: bytes) -> None:
        try:
            TARGETS[name](data)
        except BaseException:
            finding = FOLDER / f"{name}-{hashlib.sha1(data).hexdigest()[:12]}"
            finding.write_bytes(data)
            print(f"finding: {finding}", flush=True)
            raise

    atheris.Setup([sys.argv[0], str(corpus), *limits, *options], kept)
    atheris.Fuzz()


def every() -> int:
    """Each target in a process of its own; the number of those that found something."""
    from fuzz.targets import TARGETS

    failed = []
    for name in TARGETS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "fuzz", name], check=False).returncode:
            failed.append(name)
    print(f"{len(TARGETS)} targets, findings in: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(every())
    one(sys.argv[1], sys.argv[2:])
