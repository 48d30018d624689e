"""Speed, memory and size of models on this device, each in a process of its own and all in interleaved rounds."""
