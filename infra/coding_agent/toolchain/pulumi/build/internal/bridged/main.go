// Package bridged serves a Terraform provider as a plugin of the engine.
//
// The bridge itself takes the plugin's schema as a file that its generator wrote at build time. That generator drags in
// the code generators of every language; what the engine asks for here, names and types, is computed from the provider
// at start instead, so that the schema cannot differ from what the plugin does.
package bridged

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge/tokens"

	"github.com/terraform-providers/terraform-provider-docker/coding-agent-toolchain/internal/lifeline"
)

// longestName is how long a name may be that the plugin thinks of itself.
const longestName = 255

// Main serves the provider until the engine is done. Resources that `info` does not name are called as the bridge's
// standard has it: docker_volume is docker:index/volume:Volume.
func Main(info tfbridge.ProviderInfo) {
	lifeline.Watch()
	info.MetadataInfo = tfbridge.NewProviderMetadata([]byte("{}"))
	info.MustComputeTokens(tokens.SingleModule(info.Name+"_", "index", tokens.MakeStandard(info.Name)))
	info.SetAutonaming(longestName, "-")
	schema, err := json.Marshal(schemaOf(info))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	tfbridge.Main(info.Name, info.Version, info, schema)
}
