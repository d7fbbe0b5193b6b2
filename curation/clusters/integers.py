"""Products of 8-bit integers by maintained libraries: onnxruntime on every processor, oneDNN where
it is fast.

Both give exact 32-bit sums. They need a quarter of float32's memory traffic and half or less of its
instructions.
"""

from typing import ClassVar

import numpy as np
import onnxruntime
import torch
from jaxtyping import Int8, Int32
from onnx import TensorProto, helper, numpy_helper

SIGN_BIT = np.uint8(128)


class OnnxRuntimeProduct:
    """onnxruntime's MatMulInteger, which has kernels for AVX2, VNNI, AMX and ARM.

    Its fast kernels multiply unsigned rows by signed weights. On AVX2 alone they add two products
    in 16 bits: 2 x 255 x 64 fits, 2 x 255 x 127 does not, and a sum that does not fit is wrong
    without a word.
    """

    largest_weight: ClassVar[int] = 64
    """Weights must lie between minus this and this."""

    def __init__(self, weights: Int8[np.ndarray, "k d"]) -> None:
        self.num_weights = len(weights)
        # The session reads the weights where they are, so they must live as long as the session.
        self.weights = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weights.T))

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_external_initializers(["weights"], [self.weights])
        graph = _graph(*weights.shape)
        self.session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, rows: Int8[np.ndarray, "n d"], out: Int32[np.ndarray, "n k"]) -> None:
        """Write the inner product of every row with every weight vector to `out`."""
        # Flipping the sign bit adds 128, which the graph's zero point takes away again.
        shifted = rows.view(np.uint8) ^ SIGN_BIT
        binding = self.session.io_binding()
        binding.bind_cpu_input("rows", shifted)
        binding.bind_output("products", "cpu", 0, np.int32, out.shape, out.ctypes.data)
        self.session.run_with_iobinding(binding)


def _graph(num_weights: int, dim: int) -> bytes:
    """A model of one node whose weights are handed over in memory: inside the model they could have
    2 GB at most.
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


class OneDnnProduct:
    """oneDNN's product through torch, for processors with VNNI or AMX; on others torch runs a plain
    loop.
    """

    largest_weight: ClassVar[int] = 127
    """Weights must lie between minus this and this."""

    def __init__(self, weights: Int8[np.ndarray, "k d"]) -> None:
        self.weights = torch.from_numpy(weights).T

    def __call__(self, rows: Int8[np.ndarray, "n d"], out: Int32[np.ndarray, "n k"]) -> None:
        """Write the inner product of every row with every weight vector to `out`."""
        torch._int_mm(torch.from_numpy(rows), self.weights, out=torch.from_numpy(out))


IntegerProduct = OnnxRuntimeProduct | OneDnnProduct
