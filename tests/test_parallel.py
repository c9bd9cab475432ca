"""Threads: results do not depend on how many there are, nor on what else runs."""

from contextlib import ExitStack

from threadpoolctl import threadpool_info

from onnxcompress.parallel import one_thread_each


def test_blas_keeps_to_one_thread_until_the_last_of_overlapping_runs_ends():
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(one_thread_each())
        second.enter_context(one_thread_each())
        first.close()
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
