"""Products of 8-bit integers by onnxruntime, with exact 32-bit sums.

They need a quarter of float32's memory traffic and at most half of its instructions.
"""

from typing import ClassVar

import numpy as np
import onnxruntime
import torch
from jaxtyping import Int8, Int32
from onnx import TensorProto, helper, numpy_helper

from curation.clusters.subspace import Costs

SIGN_BIT = np.uint8(128)
HAS_VNNI = torch.cpu._is_vnni_supported()
HAS_AMX = torch.cpu._is_amx_tile_supported()

# Of a search with these products: the faster they are, the more everything else costs. Measured on
# an Intel Xeon (Emerald Rapids), with and without AMX, and on an AMD EPYC (Zen 3).
AMX_COSTS = Costs(projection=24, column=450, candidate=100)
VNNI_COSTS = Costs(projection=11, column=130, candidate=45)
AVX2_COSTS = Costs(projection=3.5, column=30, candidate=8)
COSTS = AMX_COSTS if HAS_AMX else VNNI_COSTS if HAS_VNNI else AVX2_COSTS


class IntegerProduct:
    """onnxruntime's MatMulInteger, which has kernels for AVX2, VNNI, AMX and ARM.

    Its fast kernels multiply unsigned rows by signed weights. On processors without VNNI they add
    two products in a signed 16-bit integer, which holds at most 32,767: 2 x 255 x 64 fits,
    2 x 255 x 127 does not. A sum that does not fit is silently wrong.
    """

    largest_weight: ClassVar[int] = 127 if HAS_VNNI else 64
    """Weights must lie between minus this and this."""

    def __init__(self, weights: Int8[np.ndarray, "k d"]) -> None:
        self.num_weights = len(weights)
        # The session does not copy the weights, so they must live as long as the session does.
        self.weights = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weights.T))

        options = onnxruntime.SessionOptions()
        # The threads that this process was allowed, not one per core of the machine.
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False  # an arena keeps memory that is needed once
        options.add_external_initializers(["weights"], [self.weights])
        graph = _graph(*weights.shape)
        self.session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, rows: Int8[np.ndarray, "n d"], out: Int32[np.ndarray, "n k"]) -> None:
        """Write the inner product of every row with every weight vector to `out`."""
        # Read as unsigned, a signed byte with its sign bit flipped is the value plus 128 (-1 is
        # 0xFF, flipped 0x7F = 127). The graph's zero point subtracts 128 again.
        shifted = rows.view(np.uint8) ^ SIGN_BIT
        # Binding `out` by its address makes the product land there without a copy.
        binding = self.session.io_binding()
        binding.bind_cpu_input("rows", shifted)
        binding.bind_output("products", "cpu", 0, np.int32, out.shape, out.ctypes.data)
        self.session.run_with_iobinding(binding)


def _graph(num_weights: int, dim: int) -> bytes:
    """A serialized model of one node. Its weights are passed in memory, outside the model.

    A serialized model can have at most 2 GB.
    """
    weights = TensorProto(
        name="weights",
        data_type=TensorProto.INT8,
        dims=[dim, num_weights],
        data_location=TensorProto.EXTERNAL,
    )
    weights.external_data.add(key="location", value="memory")
    zero_point = numpy_helper.from_array(np.array(SIGN_BIT), "zero_point")

    rows = helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, dim])
    products = helper.make_tensor_value_info("products", TensorProto.INT32, [None, num_weights])
    node = helper.make_node("MatMulInteger", ["rows", "weights", "zero_point"], ["products"])
    graph = helper.make_graph([node], "product", [rows], [products], [weights, zero_point])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return model.SerializeToString()
