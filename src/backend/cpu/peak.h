/* SPDX-License-Identifier: MIT
 * What this processor reaches at best now; see backend/backend.h. */
#ifndef BACKEND_CPU_PEAK_H
#define BACKEND_CPU_PEAK_H
#include "backend/backend.h"

kron_status peak_measure(struct be_device *d, struct be_peak *out);

#endif
