"""The networks that private inference is compared on: shapes of the literature, written as any user would.

Reading order: ``small`` (MNIST and CIFAR), ``resnet``, ``mobilenet``, ``settle`` (weights where there are none to be
had), ``folder`` (real images and weights), ``registry`` (all of it by name).
"""
