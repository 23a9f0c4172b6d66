#define VQP_KIND 3
#include "wna16_instances.h"
