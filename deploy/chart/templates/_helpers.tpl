{{- define "dsfs.name" -}}
{{- if contains "dsfs" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-dsfs" (.Release.Name | trunc 35 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "dsfs.labels" -}}
app.kubernetes.io/name: dsfs
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "dsfs.selector" -}}
app.kubernetes.io/name: dsfs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dsfs.image" -}}
{{- $repository := required "image.repository: no image is published; build deploy/Dockerfile, push it, and name it here" .Values.image.repository -}}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}{{ else }}{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "dsfs.keeperImage" -}}
{{- .Values.keeper.image | default (include "dsfs.image" .) }}
{{- end }}

{{- define "dsfs.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "dsfs.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "dsfs.priorityClass" -}}
{{- if .Values.priorityClass.create }}{{ .Values.priorityClass.name | default (printf "%s-node" (include "dsfs.name" .)) }}{{ else }}{{ .Values.priorityClass.name }}{{ end }}
{{- end }}

{{- define "dsfs.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-datasets" (include "dsfs.name" .)) }}
{{- end }}

{{- define "dsfs.sharedClaim" -}}
{{- if .Values.sharedCache.create }}{{ printf "%s-shared-cache" (include "dsfs.name" .) }}{{ else }}{{ .Values.sharedCache.existingClaim }}{{ end }}
{{- end }}

{{- define "dsfs.mountpoint" -}}
{{ .Values.hostPaths.root }}/{{ .Values.mount }}
{{- end }}

{{/* Volumes are named after what they are for: a name of NAMESPACE/NAME cannot be a volume's. */}}
{{- define "dsfs.volumeName" -}}
{{- printf "%s-%s" .kind (.as | sha256sum | trunc 10) }}
{{- end }}

{{/* Two of one `as` would be two volumes of one name, which the API refuses with a name that is in no values. */}}
{{- define "dsfs.onceEach" -}}
{{- $seen := dict }}
{{- range .given }}
{{- if hasKey $seen .as }}{{ fail (printf "%s: %s is there twice under `as`; leave one" $.what .as) }}{{ end }}
{{- $_ := set $seen .as true }}
{{- end }}
{{- end }}

{{/* What a node needs to be given a pod, the same for keeper and server. */}}
{{- define "dsfs.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
serviceAccountName: {{ include "dsfs.serviceAccount" . }}
automountServiceAccountToken: false # dsfs never talks to the API server
enableServiceLinks: false
{{- with include "dsfs.priorityClass" . }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
