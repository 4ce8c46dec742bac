"""Private from the first gradient to the last answer: ten clients train, are attacked, and ask what they trained.

Needs digits and pictures: pip install 'private-quantized-inference[demo,pictures]'. In Flower: examples/flower_app.
"""

from __future__ import annotations

import numpy as np

import pqi
from pqi.federated import DistributedDiscreteGaussian, Encoding
from pqi.federated.study import attacks
from pqi.federated.study.averaging import EncodedAverage
from pqi.federated.study.page import Study, write_page
from pqi.federated.study.split import dirichlet_split, even_split
from pqi.federated.study.training import Federation, Local, average_floats, digits_task, from_vector, start


def main() -> None:
    """Train, attack, serve."""
    task = digits_task()
    labels = task.train_y.numpy()

    # Federated averaging. Every update becomes 16-bit integers, cut into shares; the server learns their sum alone.
    federation = Federation(task, dirichlet_split(labels, 10, alpha=0.5, seed=0, least=8), Local(2, 16, 0.2))
    plain = federation.train(20, average_floats)
    private = federation.train(20, EncodedAverage(Encoding(clip=2.0, modulus_bits=16), protocols=("shares",)))
    print(f"accuracy: {plain.accuracies[-1]:.1%} by plain averaging, {private.accuracies[-1]:.1%} by secure sums")

    # What could the server have read? From one client's update, from the sum of ten, from the sum with noise.
    noisy = Encoding(clip=0.5, modulus_bits=20, mechanism=DistributedDiscreteGaussian(noise_multiplier=1.0))
    views: dict[str, attacks.See] = {
        "one client": attacks.one_client,
        "average of 10": EncodedAverage(Encoding(clip=10.0)),
        "average, noise 1": EncodedAverage(noisy),
    }
    images = attacks.invert(task, views, clients=10, local=Local(1, 1), images=1, trials=20)
    crowd = Federation(task, even_split(labels, 80, seed=0), Local(10, 8), per_round=10)
    members = attacks.infer(crowd, views, rounds=(0, 2))
    for image in images:
        print(f"{image.view:17} likeness of an image read, beyond guessing: {image.leaked}")
    for member in members:
        print(f"{member.view:17} membership by {member.score:8} right in pairs:  {member.area}")
    both = {"Digits: one image, one step": images}, {"Digits: 17 images a client, 10 epochs": members}
    write_page("federated_circle.html", Study("What a server could read", {"average": "what secure sums show"}, *both))
    print("pictures: federated_circle.html")

    # The result as an exact integer model, served by two servers that see neither weights nor images, to every client.
    net = from_vector(start(task, 0), private.vector).eval()
    model = pqi.quantize(net, calibration=task.train_x.numpy(), weight_bits=8, activation_bits=6)
    asked = [task.test_x[client::10].numpy() for client in range(10)]
    with pqi.local(model, protocol="additive2") as service:
        equal = [np.array_equal(service.predict(x).values, model.predict(x)) for x in asked]
    print(f"{sum(equal)} of 10 clients got the integer model's answers, every integer of them")
    raise SystemExit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
