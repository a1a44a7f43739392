# terraform apply -var-file=night.tfvars, with your own names in a copy of this file.
project       = "my-project"
region        = "europe-west4"
image_buckets = ["my-photographs"]
template      = "gs://my-project-beamcam-assets/templates/beamcam.json"
image         = "europe-west4-docker.pkg.dev/my-project/beamcam/beamcam:0.1.0-py3.11-0123456789ab"
emails        = ["nights@example.com"]

parameters = {
  images      = "gs://my-photographs/today.parquet"
  model       = "gs://my-project-beamcam-assets/model.keras"
  preprocess  = "tf"
  class_names = "gs://my-project-beamcam-assets/names.txt"
}

environment = {
  maxWorkers = 8
}
