package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"
)

// Prefix is what the names of this product's environment variables begin with.
const Prefix = "REDOUBT_"

const delim = "."

// Source is where settings come from. Later ones win: Path, then Env, then Flags.
type Source struct {
	// Path of the YAML file; "" means none.
	Path string
	// Env has the form of os.Environ. The field a.b is set by REDOUBT_A_B, a list by texts with commas between.
	Env []string
	// Flags are values by dotted path: {"mesh.listen": "127.0.0.1:0"}. Only those that were given belong here.
	Flags map[string]string
}

// Validator is implemented by sections, with a pointer receiver or not, that have rules of their own. Validate is
// called after everything was read, inner sections first.
type Validator interface{ Validate() error }

// Load reads the file at path and the environment over defaults. See LoadFrom.
func Load[T any](path string, environ []string, defaults T) (T, error) {
	return LoadFrom(Source{Path: path, Env: environ}, defaults)
}

// LoadFrom reads settings over defaults, which are not changed, reads the files of secrets, and validates. The error
// joins all that is wrong; with it comes the zero value.
func LoadFrom[T any](src Source, defaults T) (T, error) {
	var zero T
	t := reflect.TypeFor[T]()
	if err := checkType(t, "", 0); err != nil {
		return zero, err
	}
	out := reflect.New(t).Elem()
	out.Set(clone(reflect.ValueOf(defaults)))
	k := koanf.New(delim)

	var errs []error
	if src.Path != "" {
		m, err := loadFile(src.Path, t)
		if err != nil {
			errs = append(errs, err)
		} else if err := k.Load(tree(m), nil); err != nil {
			errs = append(errs, err)
		}
	}
	texts, err := newTexts(t)
	if err != nil {
		return zero, err
	}
	if err := texts.loadEnv(k, src.Env); err != nil {
		errs = append(errs, err)
	}
	if err := texts.loadFlags(k, src.Flags); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return zero, errors.Join(errs...)
	}

	replaceWhole(out, k.Raw())
	if err := decode(k, out.Addr().Interface()); err != nil {
		return zero, err
	}
	if err := validate(out, ""); err != nil {
		return zero, err
	}
	return out.Interface().(T), nil
}

// tree is a koanf.Provider of what is already a tree.
type tree map[string]any

// ReadBytes implements koanf.Provider.
func (tree) ReadBytes() ([]byte, error) { return nil, errors.New("config: a tree has no bytes") }

// Read implements koanf.Provider.
func (t tree) Read() (map[string]any, error) { return t, nil }

// texts knows the settings that variables and flags can reach.
type texts struct {
	byEnv    map[string]settable
	byPath   map[string]settable
	sections []string // REDOUBT_X_ of each section x
}

func newTexts(t reflect.Type) (*texts, error) {
	x := &texts{byEnv: map[string]settable{}, byPath: map[string]settable{}}
	for _, s := range settables(t, nil) {
		name := Prefix + strings.ToUpper(strings.Join(s.path, "_"))
		if other, twice := x.byEnv[name]; twice {
			return nil, fmt.Errorf("config: %s would set both %s and %s", name, strings.Join(other.path, "."), strings.Join(s.path, "."))
		}
		x.byEnv[name] = s
		x.byPath[strings.Join(s.path, ".")] = s
	}
	for _, f := range fields(t) {
		if !leaf(f.typ) {
			x.sections = append(x.sections, Prefix+strings.ToUpper(f.name)+"_")
		}
	}
	return x, nil
}

// loadEnv takes the variables that are settings. Others with the prefix belong to the command line, but not those that
// look like a setting in one of the sections.
func (x *texts) loadEnv(k *koanf.Koanf, environ []string) error {
	var errs []error
	provider := env.Provider(delim, env.Opt{
		Prefix:      Prefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			s, ok := x.byEnv[name]
			if !ok {
				if slices.ContainsFunc(x.sections, func(p string) bool { return strings.HasPrefix(name, p) }) {
					errs = append(errs, fmt.Errorf("%s: no such setting", name))
				}
				return "", nil
			}
			v, err := storeText(value, s.typ, s.sensitive)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				return "", nil
			}
			return strings.Join(s.path, delim), v
		},
	})
	if err := k.Load(provider, nil); err != nil {
		errs = append(errs, fmt.Errorf("config: environment: %w", err))
	}
	return errors.Join(errs...)
}

func (x *texts) loadFlags(k *koanf.Koanf, flags map[string]string) error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(flags)) {
		s, ok := x.byPath[path]
		if !ok {
			errs = append(errs, fmt.Errorf("flag %s: no such setting", path))
			continue
		}
		v, err := storeText(flags[path], s.typ, s.sensitive)
		if err == nil {
			err = k.Set(strings.Join(s.path, delim), v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("flag %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// decode fills the struct from what was checked already. Secrets are still paths here, and other texts still texts.
func decode(k *koanf.Koanf, out any) error {
	hook := func(_, to reflect.Type, v any) (any, error) {
		s, ok := v.(string)
		switch {
		case ok && to == typeSecret:
			return readSecret(s)
		case ok && reflect.PointerTo(to).Implements(typeText):
			return convert(s, to, true)
		}
		return v, nil
	}
	err := k.UnmarshalWithConf("", out, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		DecodeHook: hook, ErrorUnused: true, MatchName: func(key, field string) bool { return key == field }, TagName: "koanf",
	}})
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

// replaceWhole empties the lists and maps that are set, so that they replace the default's and do not mix with it.
func replaceWhole(v reflect.Value, set map[string]any) {
	for _, f := range fields(v.Type()) {
		val, ok := set[f.name]
		if !ok {
			continue
		}
		fv := v.Field(f.index)
		switch {
		case leaf(f.typ):
		case fv.Kind() == reflect.Slice, fv.Kind() == reflect.Map:
			fv.SetZero()
		default:
			if fv.Kind() == reflect.Pointer {
				if fv.IsNil() {
					continue
				}
				fv = fv.Elem()
			}
			if inner, ok := val.(map[string]any); ok {
				replaceWhole(fv, inner)
			}
		}
	}
}

// clone copies what pointers, lists and maps lead to, so that decoding does not write into the defaults.
func clone(v reflect.Value) reflect.Value {
	if leaf(v.Type()) {
		return v
	}
	switch v.Kind() {
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		for _, f := range fields(v.Type()) {
			out.Field(f.index).Set(clone(v.Field(f.index)))
		}
		return out
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(clone(v.Elem()))
		return out
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(clone(v.Index(i)))
		}
		return out
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			out.SetMapIndex(it.Key(), clone(it.Value()))
		}
		return out
	}
	return v
}

// validate asks every section for its own rules, inner ones first.
func validate(v reflect.Value, path string) error {
	var errs []error
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return validate(v.Elem(), path)
	case reflect.Slice:
		for i := range v.Len() {
			errs = append(errs, validate(v.Index(i), fmt.Sprintf("%s[%d]", path, i)))
		}
		return errors.Join(errs...)
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			item := reflect.New(it.Value().Type()).Elem() // a value in a map has no address
			item.Set(it.Value())
			errs = append(errs, validate(item, join(path, it.Key().String())))
		}
		return errors.Join(errs...)
	case reflect.Struct:
	default:
		return nil
	}
	if leaf(v.Type()) {
		return nil
	}
	for _, f := range fields(v.Type()) {
		errs = append(errs, validate(v.Field(f.index), join(path, f.name)))
	}
	x, ok := v.Addr().Interface().(Validator)
	if ok {
		if err := x.Validate(); err != nil {
			if path == "" {
				path = "(top)"
			}
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}
