"""``classify --ray``: the job cut into parts, which the machines of a Ray cluster classify.

The driver lists the images and gives numbers of parts away; an actor lists them too, classifies its part with the same
pipeline and sinks as on one machine, and leaves a file that appears whole. Images and rows never pass through Ray.
"""
