# What has to be there before a night: services, places for files and images.

locals {
  services = [
    "artifactregistry.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
    "workflowexecutions.googleapis.com",
    "workflows.googleapis.com",
  ]
}

resource "google_project_service" "all" {
  for_each           = toset(local.services)
  service            = each.value
  disable_on_destroy = false # others in the project may use it
}

# Models, class names, configuration and the template: what a night reads and never writes.
resource "google_storage_bucket" "assets" {
  name                        = "${var.project}-${var.name}-assets"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true # a model that was replaced by mistake comes back
  }

  lifecycle_rule {
    condition {
      num_newer_versions = 5
      with_state         = "ARCHIVED"
    }
    action {
      type = "Delete"
    }
  }
}

# Runs: a folder a night. All of it stays: tonight's records name the overlays of earlier nights for images that have not
# changed, and the next night is not whole without them. Overlays, most of the bytes, may become cold.
resource "google_storage_bucket" "runs" {
  name                        = "${var.project}-${var.name}-runs"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Overlays are the only PNGs of a run. (A prefix could not tell them: it would begin with the night's date.)
  dynamic "lifecycle_rule" {
    for_each = var.overlay_cold_days > 0 ? [var.overlay_cold_days] : []
    content {
      condition {
        age            = lifecycle_rule.value
        matches_suffix = [".png"]
      }
      action {
        type          = "SetStorageClass"
        storage_class = "NEARLINE"
      }
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

# What Dataflow stages and leaves behind.
resource "google_storage_bucket" "scratch" {
  name                        = "${var.project}-${var.name}-scratch"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true

  soft_delete_policy {
    retention_duration_seconds = 0 # nobody wants it back, and keeping it costs
  }

  lifecycle_rule {
    condition {
      age = var.scratch_days
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      age = 1
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  description   = "beamcam's container images: workers, launcher and audit are one"

  cleanup_policies {
    id     = "keep-the-last-ten"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }

  cleanup_policies {
    id     = "delete-what-is-older"
    action = "DELETE"
    condition {
      tag_state  = "UNTAGGED" # what has a tag may be what the nights run
      older_than = "2592000s"
    }
  }

  depends_on = [google_project_service.all]
}
