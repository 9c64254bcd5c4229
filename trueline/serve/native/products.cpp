// The doors of the shared library that belong to products.hpp: plain C, called by ctypes.
#include "products.hpp"

extern "C" {

// One share of the outputs, by the calling thread.
void trueline_product(const Weight* w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t n0, int64_t n1,
                      int32_t add) {
    product(*w, x, ldx, T, y, ldy, n0, n1, add != 0);
}

// Bytes of the vector registers that were compiled for.
int32_t trueline_vector_bytes() { return products::LANES * 4; }
}
