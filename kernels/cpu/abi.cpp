// The version of the C interface that this library offers. The Python side refuses a
// library whose number differs from its own, which is what a stale build looks like.

extern "C" __attribute__((visibility("default"))) int vqp_cpu_abi_version() { return 1; }
