"""Sources of pictures: file, camera, network, frame folder, signals and synthetic behind one protocol."""
