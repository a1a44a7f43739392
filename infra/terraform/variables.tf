variable "project" {
  description = "The project that everything belongs to."
  type        = string
}

variable "region" {
  description = "Where the night runs and its files lie: the images' own region, and one with the wanted GPU."
  type        = string
}

variable "name" {
  description = "What the names of all resources begin with."
  type        = string
  default     = "beamcam"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "A name is of 2 to 21 lowercase letters, digits and dashes, and begins with a letter."
  }
}

variable "image_buckets" {
  description = "Buckets with the images and manifests, which workers and the audit are given to read, and the night writes nothing to; best in another project than this one."
  type        = set(string)
}

variable "template" {
  description = "The flex template that infra/dataflow/build.sh has made: gs://..., in the bucket of assets."
  type        = string

  validation {
    condition     = startswith(var.template, "gs://")
    error_message = "The template is the gs:// address that infra/dataflow/build.sh was given."
  }
}

variable "image" {
  description = "The container image that infra/dataflow/build.sh tells at its end."
  type        = string
}

variable "parameters" {
  description = "Parameters of the template (infra/dataflow/metadata.json), but for output, since and max_failures: images, model, preprocess and so on."
  type        = map(string)

  validation {
    condition     = length(setintersection(keys(var.parameters), ["output", "since"])) == 0
    error_message = "The night chooses output and since itself: leave them out of parameters."
  }

  validation {
    condition     = !contains(keys(var.parameters), "max_failures")
    error_message = "A job with more failures than max_failures fails although its run is whole, and the night never comes to the audit, which judges failures itself (BC301): leave it out of parameters."
  }
}

variable "environment" {
  description = "More of the Dataflow job's environment, by the names of the API's FlexTemplateRuntimeEnvironment: maxWorkers, subnetwork, ipConfiguration and so on."
  type        = any
  default     = {}
}

variable "audit_options" {
  description = "Options of beamcam audit, a word each."
  type        = list(string)
  default     = ["--history", "14"]
}

variable "schedule" {
  description = "When the night begins, as cron says it; its date is the day in UTC at that moment."
  type        = string
  default     = "0 1 * * *"
}

variable "time_zone" {
  description = "Of the schedule."
  type        = string
  default     = "Etc/UTC"
}

variable "paused" {
  description = "Whether no night begins by itself: for the days of the first set-up."
  type        = bool
  default     = false
}

variable "attempts" {
  description = "How often a night's job is launched before the night has failed."
  type        = number
  default     = 2

  validation {
    condition     = var.attempts >= 1 && var.attempts <= 5
    error_message = "A night has 1 to 5 attempts."
  }
}

variable "hours" {
  description = "How long a night's job may take before somebody is told."
  type        = number
  default     = 12
}

variable "emails" {
  description = "Who is told of nights that fail, find something, or do not happen."
  type        = set(string)
}

variable "audit_memory" {
  description = "Of the container that verifies and audits: 4 GiB and 2 processors are enough for tens of millions of images."
  type        = string
  default     = "4Gi"
}

variable "overlay_cold_days" {
  description = "Days after which overlays move to Nearline, cheaper to keep and dearer to look at; 0 for never. The move itself costs about $0.01 per 1,000 overlays, which files so small hardly earn."
  type        = number
  default     = 0
}

variable "scratch_days" {
  description = "Days that Dataflow's staged and temporary files stay: longer than any job runs."
  type        = number
  default     = 14
}
