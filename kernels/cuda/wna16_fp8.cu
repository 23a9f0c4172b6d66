#define VQP_KIND 9 /* FP8 E4M3 */
#include "wna16_instances.h"
