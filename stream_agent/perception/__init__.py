"""From a frame to evidence: the reduced picture, the gate, the recognisers and the segmenter.

planes ─thumbnail→ gate ─recogniser→ gate ─Evidence→ segmenter ─ClipEvent→
"""
