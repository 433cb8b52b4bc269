"""Videos, pictures and the procedural world to shards of what the U-Net trains on."""
