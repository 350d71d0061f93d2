/* SPDX-License-Identifier: MIT
 * How far numbers are from those wanted. */
#ifndef UNIT_DISTANCE_H
#define UNIT_DISTANCE_H
#include <math.h>
#include <stdint.h>

/* |x - y| / |y|, of n numbers */
static inline double distance(const float *x, const float *y, int64_t n)
{
    double d = 0, size = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        size += (double)y[i] * y[i];
    }
    return sqrt(d / size);
}

#endif
