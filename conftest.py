"""For the whole run (unit tests and notebooks): a scratch folder for records, and an estimate of the time left."""

import os
import tempfile
import time

_began = time.time()
_seen = {"done": 0, "said": 0.0}


def pytest_configure(config):
    # notebooks under test must neither read nor write this machine's own records and checkpoints
    if "COMPANION_TEST_RUNS" not in os.environ:
        os.environ["COMPANION_TEST_RUNS"] = tempfile.mkdtemp(prefix="companion-tests-")
    os.environ["COMPANION_RUNS"] = os.environ["COMPANION_TEST_RUNS"]
    os.environ.pop("COMPANION_CACHE", None)
    # public data, where there are any, only for the tests that ask for them under this name
    os.environ.setdefault("COMPANION_TEST_DATA", os.environ.get("COMPANION_DATA", ""))
    os.environ.pop("COMPANION_DATA", None)


def pytest_runtest_logreport(report):
    if report.when != "call" or "PYTEST_XDIST_WORKER" in os.environ:
        return
    _seen["done"] += 1
    total, passed = _seen.get("total"), time.time() - _began
    if total and passed - _seen["said"] > 20:
        _seen["said"] = passed
        left = passed / _seen["done"] * (total - _seen["done"])
        print(f"\n{_seen['done']} of {total} checks, {passed:.0f} s, about {left:.0f} s left", flush=True)


def pytest_collection_finish(session):
    _seen["total"] = len(session.items)


def pytest_xdist_node_collection_finished(node, ids):
    _seen["total"] = len(ids)
