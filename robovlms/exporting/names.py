"""Names of a program's inputs, outputs and metadata, for those who write one and those who play it."""

FRAMES = "frames_"  # before the name of a view
NEXT = "next_"  # before the name of a memory, where it is an output
METADATA = "robovlms"  # key of the JSON that an ONNX file carries; a file of that name in a torch program
VERSION = 1  # of its layout
