output "runs" {
  description = "Where the nights' runs are: a folder each, named by its date."
  value       = google_storage_bucket.runs.url
}

output "assets" {
  description = "Where the model, class names and the template belong."
  value       = google_storage_bucket.assets.url
}

output "scratch" {
  description = "Dataflow's temporary and staged files."
  value       = google_storage_bucket.scratch.url
}

output "registry" {
  description = "What the image's name begins with, for infra/dataflow/build.sh."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "worker" {
  description = "The account of Dataflow's workers."
  value       = google_service_account.worker.email
}

output "begin_a_night" {
  description = "Begins a night now, or takes up an earlier one with its date."
  value       = "gcloud workflows execute ${google_workflows_workflow.night.name} --project=${var.project} --location=${var.region} --data='{}'"
}
