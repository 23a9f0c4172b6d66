#define VQP_KIND 5
#include "wna16_instances.h"
