package bridged

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	shim "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim"
	pschema "github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

// moduleFormat says that of a module such as index/server only the first part counts.
const moduleFormat = `{"moduleFormat": "(.*)(?:/[^/]*)"}`

// ownID is what the id of a resource is called, in Terraform and here.
const ownID = "id"

// schemaOf returns what the bridge's generator would say of a provider, without its prose.
func schemaOf(info tfbridge.ProviderInfo) pschema.PackageSpec {
	w := &writer{pkg: info.Name, types: map[string]pschema.ComplexTypeSpec{}}
	spec := pschema.PackageSpec{
		Name: info.Name, Version: info.Version, Types: w.types, Resources: map[string]pschema.ResourceSpec{},
		Config: pschema.ConfigSpec{Variables: map[string]pschema.PropertySpec{}},
	}
	if err := json.Unmarshal([]byte(moduleFormat), &spec.Meta); err != nil {
		panic(err)
	}
	provider := w.provider(info.P.Schema(), info.Config)
	spec.Provider, spec.Config.Variables = &provider, provider.InputProperties
	info.P.ResourcesMap().Range(func(key string, resource shim.Resource) bool {
		if named := info.Resources[key]; named != nil {
			name := named.Tok.Name().String()
			spec.Resources[string(named.Tok)] = w.resource(name, resource.Schema(), named.Fields)
		}
		return true
	})
	return spec
}

// provider returns what a plugin can be configured with.
func (w *writer) provider(fields shim.SchemaMap, infos fieldInfos) pschema.ResourceSpec {
	inputs := w.object("Provider", fields, infos).Properties
	return pschema.ResourceSpec{
		ObjectTypeSpec:  pschema.ObjectTypeSpec{Type: "object", Properties: inputs},
		InputProperties: inputs,
	}
}

// resource returns the inputs and outputs of a resource.
func (w *writer) resource(name string, fields shim.SchemaMap, infos fieldInfos) pschema.ResourceSpec {
	spec := pschema.ResourceSpec{InputProperties: map[string]pschema.PropertySpec{}}
	spec.Type, spec.Properties = "object", map[string]pschema.PropertySpec{}
	state := w.object(name, fields, infos)
	state.Required = nil            // whoever looks a resource up names what is known
	delete(state.Properties, ownID) // each resource has one: it is no property
	spec.StateInputs = &state
	for _, field := range named(fields, infos) {
		if field.name == ownID {
			continue
		}
		output := state.Properties[field.name]
		output.WillReplaceOnChanges = false
		spec.Properties[field.name] = output
		if !field.optionalOutput() {
			spec.Required = append(spec.Required, field.name)
		}
		if field.isInput() {
			spec.InputProperties[field.name] = state.Properties[field.name]
			if !field.optionalInput() {
				spec.RequiredInputs = append(spec.RequiredInputs, field.name)
			}
		}
	}
	return spec
}

// field is one property, as Terraform and as the bridge's configuration describe it.
type field struct {
	name   string
	schema shim.Schema
	info   *tfbridge.SchemaInfo
}

type fieldInfos = map[string]*tfbridge.SchemaInfo

// named returns the fields in the order of their names.
func named(fields shim.SchemaMap, infos fieldInfos) (found []field) {
	fields.Range(func(key string, schema shim.Schema) bool {
		info := infos[key]
		name := tfbridge.TerraformToPulumiNameV2(key, fields, infos)
		if schema.Removed() == "" && (info == nil || !info.Omit) {
			found = append(found, field{name, schema, info})
		}
		return true
	})
	slices.SortFunc(found, func(a, b field) int { return strings.Compare(a.name, b.name) })
	return found
}

func (f field) isInput() bool { return f.schema.Optional() || f.schema.Required() }

// hasOwnDefault says whether the plugin thinks of a value itself where none is given.
func (f field) hasOwnDefault() bool { return f.info != nil && f.info.HasDefault() }

func (f field) optionalInput() bool {
	return f.schema.Optional() || f.schema.Computed() || f.hasOwnDefault()
}

func (f field) optionalOutput() bool {
	return f.schema.Optional() && !f.schema.Computed() && !f.hasOwnDefault()
}

func (f field) isSecret() bool {
	if f.info != nil && f.info.Secret != nil {
		return *f.info.Secret
	}
	return f.schema.Sensitive()
}
