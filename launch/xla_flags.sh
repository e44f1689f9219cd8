# shellcheck shell=bash
# XLA's settings per platform, each with its reason; the only place for them. `source launch/xla_flags.sh tpu|gpu|cpu`
# What is set already wins: flags given twice go by the last. Tests compile with each (tests/test_launch.py).

case "${1:?source launch/xla_flags.sh tpu|gpu|cpu}" in
tpu) # read by libtpu when it starts
  flags=(
    # Gathers of a layer's parameters run beside the matrix products of the layer before. On in libtpu 0.0.52, and what
    # the plans of docs/scale.md rest on: said here so that another release does not take it away silently.
    --xla_tpu_enable_async_collective_fusion=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    # One gather may hide behind several products, not only the next one.
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    # Lets products go on on the tensor core while a collective runs.
    --xla_tpu_overlap_compute_collective_tc=true
  )
  export LIBTPU_INIT_ARGS="${flags[*]} ${LIBTPU_INIT_ARGS:-}"
  ;;
gpu)
  flags=(
    # Starts collectives early and waits for them late, instead of one after the other.
    --xla_gpu_enable_latency_hiding_scheduler=true
    # Collectives of scanned layers start one turn of the loop ahead.
    --xla_gpu_enable_pipelined_all_gather=true
    --xla_gpu_enable_pipelined_reduce_scatter=true
    # A block's gradients in few large messages: small ones are bound by latency (value of NVIDIA's JAX-Toolbox guide).
    --xla_gpu_all_gather_combine_threshold_bytes=134217728
    --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
    --xla_gpu_all_reduce_combine_threshold_bytes=134217728
  )
  export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
  # A pod's GPUs run nothing else; the default leaves a quarter of their memory unused.
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  ;;
cpu) ;; # XLA's defaults are best
*)
  echo "launch/xla_flags.sh: $1 is not tpu, gpu or cpu" >&2
  false
  ;;
esac
