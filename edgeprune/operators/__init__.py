"""What each operator of an ATen graph does to labels: one table, ``RULES``, an operator is a row.

A rule gets ``(ledger, node, args, kwargs)`` with every activation replaced by its :class:`Flow` and returns
the flow(s) of the result. An operator without a row freezes what it touches.

Where an operator cuts a labelled axis by a size (``view`` into groups, ``chunk``, ``slice`` ...) the graph
cannot tell whether the forward pass computes that size or hard-codes it. Such a node offers policies, 0 being
"no constraint"; :mod:`edgeprune.groups` finds the first that is right by trying, and freezes where none is.
"""

from __future__ import annotations

from edgeprune.operators.common import Rule
from edgeprune.operators.contraction import attention, einsum, matmul
from edgeprune.operators.elementwise import combine, pool, prelu, reduction, unary
from edgeprune.operators.layers import channel_norm, convolution, index_select, linear, mixing_norm
from edgeprune.operators.movement import (
    channel_shuffle,
    glu,
    join,
    like,
    made,
    move,
    pad,
    reshape,
    split,
    take,
)


def rows(rule: Rule, names: str) -> dict[str, Rule]:
    """One row of the table for each name."""
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **rows(convolution(1), "conv1d"),
    **rows(convolution(2), "conv2d"),
    **rows(convolution(3), "conv3d"),
    **rows(convolution(1, transposed=True), "conv_transpose1d"),
    **rows(convolution(2, transposed=True), "conv_transpose2d"),
    **rows(convolution(3, transposed=True), "conv_transpose3d"),
    **rows(linear, "linear"),
    **rows(matmul, "matmul bmm mm"),
    **rows(einsum, "einsum"),
    **rows(attention, "scaled_dot_product_attention"),
    **rows(channel_norm, "batch_norm instance_norm"),
    **rows(mixing_norm, "layer_norm group_norm rms_norm"),
    **rows(prelu, "prelu"),
    **rows(
        unary,
        "relu relu6 hardtanh sigmoid hardsigmoid hardswish silu gelu tanh leaky_relu elu selu celu "
        "softplus mish log_sigmoid hardshrink softshrink threshold rrelu dropout feature_dropout "
        "alpha_dropout feature_alpha_dropout abs neg exp expm1 log log1p sqrt rsqrt sin cos erf "
        "reciprocal square floor ceil round sign logical_not clone contiguous detach alias to _to_copy "
        "type_as lift_fresh_copy nan_to_num positive",
    ),
    **rows(
        combine,
        "add sub rsub mul div maximum minimum where pow atan2 eq ne lt le gt ge addcmul addcdiv lerp fmod "
        "remainder clamp clamp_min clamp_max logical_and logical_or bitwise_and bitwise_or __and__ __or__ "
        "masked_fill true_divide floor_divide",
    ),
    **rows(
        reduction,
        "mean sum amax amin max min var std prod softmax log_softmax argmax argmin cumsum norm "
        "linalg_vector_norm logsumexp any all",
    ),
    **rows(
        pool,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d max_pool2d_with_indices upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
    **rows(
        reshape,
        "view reshape _unsafe_view view_as reshape_as flatten unflatten expand expand_as broadcast_to",
    ),
    **rows(split, "chunk split split_with_sizes tensor_split unbind"),
    **rows(take, "slice select index narrow roll"),
    **rows(index_select, "index_select"),
    **rows(join, "cat concat stack"),
    **rows(like, "zeros_like ones_like full_like"),
    **rows(made, "new_zeros new_ones new_full"),
    **rows(
        pad,
        "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
    **rows(channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **rows(glu, "glu"),
    **rows(
        move,
        "permute transpose t numpy_T movedim swapaxes squeeze unsqueeze flip repeat tile "
        "repeat_interleave pixel_shuffle pixel_unshuffle unfold adjoint mT",
    ),
}
