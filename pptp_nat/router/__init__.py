"""The daemon's parts: what stands between the core's decisions and the kernel's interfaces."""
