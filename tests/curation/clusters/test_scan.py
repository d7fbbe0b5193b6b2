"""Passes over rows: their results do not depend on how many blocks are searched at once."""

import numpy as np

from curation.clusters.scan import Scanner, points_in_memory
from curation.clusters.vectors import to_unit


def test_sums_have_the_same_bits_with_one_block_and_with_many_at_once():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5000, 512)).astype(np.float32)
    centroids = to_unit(rng.standard_normal((600, 512)).astype(np.float32))
    found = {}

    # A block has 1,024 rows. onnxruntime searches fewer at once with 600 centroids, FAISS 4,096.
    for engine, at_once in (("onnxruntime", 0), ("faiss", 4)):
        scanner = Scanner()
        points = points_in_memory(vectors, True, engine)
        found[engine] = scanner.sums((0, 5000), points, centroids)
        assert scanner._assigner.screen.tile_rows // 1024 == at_once

    one, many = found.values()
    np.testing.assert_array_equal(one.labels, many.labels)
    np.testing.assert_array_equal(one.vectors, many.vectors)
    np.testing.assert_array_equal(one.counts, many.counts)
    np.testing.assert_array_equal(one.far.rows, many.far.rows)
    np.testing.assert_array_equal(one.far.distances, many.far.distances)
    assert one.squares == many.squares
