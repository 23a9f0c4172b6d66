#define VQP_KIND 6
#include "wna16_instances.h"
