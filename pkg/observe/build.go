package observe

import "runtime/debug"

// Build is what the Go tool has written into the binary: its version, the revision of its source with a word where that had changes, and
// the version of Go. Without that information the version is "unknown".
func Build() (version, revision, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", "", ""
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified {
		revision += " with changes"
	}
	return info.Main.Version, revision, info.GoVersion
}
