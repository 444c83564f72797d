package filter

import "strings"

// Entity is the sort of thing that a key names.
type Entity uint8

// The entities.
const (
	Attribute Entity = iota + 1
	Metric
	Param
	Tag
)

// Key names something of a record. An attribute's name is the one of the schema, whatever alias was written.
type Key struct {
	Entity Entity
	Name   string
}

// Attributes that runs and experiments have.
const (
	RunID          = "run_id"
	RunName        = "run_name"
	UserID         = "user_id"
	Status         = "status"
	StartTime      = "start_time"
	EndTime        = "end_time"
	ExperimentID   = "experiment_id"
	Name           = "name"
	CreationTime   = "creation_time"
	LastUpdateTime = "last_update_time"
)

// Schema says which keys there are. Make it with Runs or Experiments.
type Schema struct {
	attributes map[string]bool // of each name, whether it is a number
	aliases    map[string]string
	data       bool // metrics and params
}

// Runs is the schema of runs.
func Runs() Schema {
	return Schema{
		attributes: map[string]bool{RunID: false, RunName: false, UserID: false, Status: false, StartTime: true, EndTime: true},
		aliases:    map[string]string{"created": StartTime, "run name": RunName, "name": RunName, "id": RunID},
		data:       true,
	}
}

// Experiments is the schema of experiments.
func Experiments() Schema {
	return Schema{
		attributes: map[string]bool{Name: false, ExperimentID: false, CreationTime: true, LastUpdateTime: true},
		aliases:    map[string]string{"created": CreationTime},
	}
}

// number reports whether the values of a key are numbers.
func (s Schema) number(k Key) bool {
	return k.Entity == Metric || k.Entity == Attribute && s.attributes[k.Name]
}

// entity reads what stands before the first dot.
func (s Schema) entity(word string) (Entity, bool) {
	switch strings.ToLower(word) {
	case "attribute", "attributes", "attr", "run":
		return Attribute, true
	case "tag", "tags":
		return Tag, true
	case "metric", "metrics":
		return Metric, s.data
	case "param", "params", "parameter", "parameters":
		return Param, s.data
	}
	return 0, false
}

// key makes a key, if there is such an attribute.
func (s Schema) key(e Entity, name string) (Key, bool) {
	if e != Attribute {
		return Key{e, name}, name != ""
	}
	if _, ok := s.attributes[name]; ok {
		return Key{e, name}, true
	}
	name, ok := s.aliases[strings.ToLower(name)]
	return Key{e, name}, ok
}

// wanted is what could have stood in place of a key that there is not.
func (s Schema) wanted() string {
	if s.data {
		return "a key is attributes. with run_id, run_name, user_id, status, start_time or end_time, or metrics., params. or tags. with a name"
	}
	return "a key is name, experiment_id, creation_time or last_update_time, or tags. with a name"
}
