"""How devices' updates become one."""
