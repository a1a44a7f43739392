# The night itself: Cloud Scheduler -> the workflow of night.yaml -> Dataflow, then Cloud Run.

locals {
  environment = merge({
    serviceAccountEmail = google_service_account.worker.email
    tempLocation        = "${google_storage_bucket.scratch.url}/temp"
    stagingLocation     = "${google_storage_bucket.scratch.url}/staging"
    launcherMachineType = "n1-standard-4" # it loads TensorFlow and the model, and keeps 16 bytes for each image
    maxWorkers          = 10
  }, var.environment)
}

resource "google_cloud_run_v2_job" "audit" {
  name                = "${var.name}-audit"
  location            = var.region
  deletion_protection = false # it keeps nothing

  template {
    template {
      service_account = google_service_account.audit.email
      timeout         = "86400s"
      max_retries     = 0 # the workflow reads the exit code

      containers {
        image   = var.image
        command = ["beamcam"]
        args    = ["--help"] # the workflow says what to do

        resources {
          limits = {
            cpu    = "2"
            memory = var.audit_memory
          }
        }
      }
    }
  }

  depends_on = [google_project_service.all]
}

resource "google_workflows_workflow" "night" {
  name                = "${var.name}-night"
  region              = var.region
  description         = "One night of beamcam: run, verify, audit"
  service_account     = google_service_account.night.id
  source_contents     = file("${path.module}/night.yaml")
  call_log_level      = "LOG_ERRORS_ONLY"
  deletion_protection = false # it keeps nothing

  user_env_vars = {
    NAME          = var.name
    PROJECT       = var.project
    REGION        = var.region
    DATAFLOW      = "https://dataflow.googleapis.com"
    CLOUD_RUN     = "https://run.googleapis.com"
    JOB           = google_cloud_run_v2_job.audit.id
    RUNS          = google_storage_bucket.runs.url
    TEMPLATE      = var.template
    PARAMETERS    = jsonencode(merge({ since = "latest" }, var.parameters))
    ENVIRONMENT   = jsonencode(local.environment)
    AUDIT_OPTIONS = jsonencode(var.audit_options)
    ATTEMPTS      = tostring(var.attempts)
    HOURS         = tostring(var.hours)
    PAUSE         = "60" # seconds between two looks at a job
  }

  depends_on = [google_project_service.all]
}

resource "google_cloud_scheduler_job" "night" {
  name             = "${var.name}-night"
  region           = var.region
  description      = "Begins the night of beamcam"
  schedule         = var.schedule
  time_zone        = var.time_zone
  paused           = var.paused
  attempt_deadline = "180s"

  # Only beginning the night is tried again; the night itself is the workflow's business.
  retry_config {
    retry_count          = 3
    min_backoff_duration = "60s"
  }

  http_target {
    uri         = "https://workflowexecutions.googleapis.com/v1/${google_workflows_workflow.night.id}/executions"
    http_method = "POST"
    headers     = { "Content-Type" = "application/json" }
    body        = base64encode(jsonencode({ argument = "{}" }))

    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }
}
