"""Order of the suite: what is quick tells first, calls with real programs come last."""

import os

# Before anything imports torch or numpy: threads that spin on two busy cores cost minutes.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402

LATER = ("slow", "gpu", "peer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def part(item: pytest.Item) -> int:
        return max((1 + LATER.index(name) for name in LATER if item.get_closest_marker(name)), default=0)

    items.sort(key=part)
    for item in items:
        # Calls on a real clock: a machine that stood still is not the gateway's fault. What fails three times
        # (without real programs, twice) has failed, and the summary names whatever had to be run again.
        if item.get_closest_marker("peer") or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=2 if item.get_closest_marker("peer") else 1))


@pytest.fixture(autouse=True)
def gpu_tests_need_a_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
