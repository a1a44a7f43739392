# Who may do what: least privilege as far as Google's roles allow. Nobody here may change rights, and the audit and the
# workers alone are given the images. But roles/dataflow.worker is of the whole project, and may let workers read and
# make objects in all of its buckets: give beamcam a project of its own, and leave the images in another.

# Workers, and the launcher of the template, which Dataflow starts under the same account.
resource "google_service_account" "worker" {
  account_id   = "${var.name}-worker"
  display_name = "beamcam: Dataflow workers and launcher"
}

resource "google_project_iam_member" "worker" {
  for_each = toset([
    "roles/dataflow.worker",
    "roles/dataflow.developer", # the launcher creates the job
  ])
  project = var.project
  role    = each.value
  member  = google_service_account.worker.member
}

resource "google_service_account_iam_member" "worker_as_itself" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser" # the launcher's job runs as the launcher
  member             = google_service_account.worker.member
}

# Verifies and audits.
resource "google_service_account" "audit" {
  account_id   = "${var.name}-audit"
  display_name = "beamcam: verify and audit"
}

# Leads through the night.
resource "google_service_account" "night" {
  account_id   = "${var.name}-night"
  display_name = "beamcam: the night's workflow"
}

resource "google_project_iam_member" "night" {
  for_each = toset([
    "roles/dataflow.developer", # launches, and asks how the job does
    "roles/logging.logWriter",
  ])
  project = var.project
  role    = each.value
  member  = google_service_account.night.member
}

resource "google_service_account_iam_member" "night_as_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.night.member
}

resource "google_cloud_run_v2_job_iam_member" "night" {
  for_each = toset([
    "roles/run.jobsExecutorWithOverrides",
    "roles/run.viewer", # how its executions ended
  ])
  name     = google_cloud_run_v2_job.audit.name
  location = google_cloud_run_v2_job.audit.location
  role     = each.value
  member   = google_service_account.night.member
}

# Begins it.
resource "google_service_account" "scheduler" {
  account_id   = "${var.name}-scheduler"
  display_name = "beamcam: begins the night"
}

resource "google_project_iam_member" "scheduler" {
  project = var.project
  role    = "roles/workflows.invoker"
  member  = google_service_account.scheduler.member
}

locals {
  readers = {
    worker = google_service_account.worker.member
    audit  = google_service_account.audit.member
  }

  images_read = { for pair in setproduct(var.image_buckets, keys(local.readers)) : "${pair[0]} ${pair[1]}" => pair }

  # A repeated shard replaces its own files, which asks for the right to delete: objectUser and not objectCreator.
  bucket_rights = {
    "worker reads assets"   = [google_storage_bucket.assets.name, "roles/storage.objectViewer", google_service_account.worker.member]
    "worker writes runs"    = [google_storage_bucket.runs.name, "roles/storage.objectUser", google_service_account.worker.member]
    "worker writes scratch" = [google_storage_bucket.scratch.name, "roles/storage.objectUser", google_service_account.worker.member]
    "audit reads assets"    = [google_storage_bucket.assets.name, "roles/storage.objectViewer", google_service_account.audit.member]
    "audit writes runs"     = [google_storage_bucket.runs.name, "roles/storage.objectUser", google_service_account.audit.member]
    "night reads assets"    = [google_storage_bucket.assets.name, "roles/storage.objectViewer", google_service_account.night.member]
  }
}

resource "google_storage_bucket_iam_member" "images" {
  for_each = local.images_read
  bucket   = each.value[0]
  role     = "roles/storage.objectViewer"
  member   = local.readers[each.value[1]]
}

resource "google_storage_bucket_iam_member" "own" {
  for_each = local.bucket_rights
  bucket   = each.value[0]
  role     = each.value[1]
  member   = each.value[2]
}

# Dataflow looks at its buckets before it uses them.
resource "google_storage_bucket_iam_member" "scratch_looked_at" {
  bucket = google_storage_bucket.scratch.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader" # Cloud Run pulls by an account of its own
  member     = google_service_account.worker.member
}
