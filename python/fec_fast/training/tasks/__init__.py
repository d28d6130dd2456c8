"""Training tasks: image classification, object detection, and the protocol that they implement."""
